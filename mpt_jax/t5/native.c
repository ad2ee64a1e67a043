// Softmax attention of an encoder for XLA's CPU backend, float32.
//
// `native.py` compiles this file for the machine it runs on and registers its
// handlers. One task is one head of one example. Its weights [n, n] never
// leave the core's cache: a block of queries is multiplied with all keys,
// normalised and multiplied with the values before the next block begins. The
// backward pass computes the weights again. Examples are taken at their own
// length, in padded and in packed rows alike, so that nothing is spent on
// padding or on the keys of other examples.
//
// Arrays are row-major: heads [B, S, H, K] as the projections leave them,
// segments int32 [B, S], bias [H, 2 S - 1] by distance, statistics [B, H, S].

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#include "xla/ffi/api/c_api.h"

#if defined(__AVX512F__)
#define LANES 16
#define WIDE 4  // vectors of a tile's row: 24 sums, 4 operands, 1 factor
#elif defined(__AVX__)
#define LANES 8
#define WIDE 2
#else
#define LANES 4
#define WIDE 4
#endif
#define ROWS 6  // rows of a tile
// Floats in a block of weights: two of them fit into a core's second cache.
#define BLOCK (64 * 1024)
#define MASKED (-1e30f)

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4)));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float* p) { return *(const vec*)p; }
INLINE void store(float* p, vec x) { *(vec*)p = x; }
INLINE vec all(float x) { return x - (vec){0}; }

// A matrix in memory: element (i, j) is at p[i * row + j * col].
typedef struct { const float* p; int64_t row, col; } mat;

// c[rows, width vectors] (+)= a[rows, depth] b[depth, width vectors].
INLINE void tile(const int rows, const int width, int64_t depth, mat a,
                 const float* b, int64_t b_row, float* c, int64_t c_row,
                 const int add) {
  vec sum[ROWS][WIDE];
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < width; j++)
      sum[i][j] = add ? load(c + i * c_row + j * LANES) : (vec){0};
  for (int64_t k = 0; k < depth; k++) {
    vec right[WIDE];
#pragma GCC unroll 4
    for (int j = 0; j < width; j++) right[j] = load(b + k * b_row + j * LANES);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
      vec left = all(a.p[i * a.row + k * a.col]);
#pragma GCC unroll 4
      for (int j = 0; j < width; j++) sum[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < width; j++)
      store(c + i * c_row + j * LANES, sum[i][j]);
}

// The same for any number of rows.
INLINE void strip(const int width, int64_t rows, int64_t depth, mat a,
                  const float* b, int64_t b_row, float* c, int64_t c_row,
                  const int add) {
  int64_t i = 0;
  for (; i + ROWS <= rows; i += ROWS, a.p += ROWS * a.row, c += ROWS * c_row)
    tile(ROWS, width, depth, a, b, b_row, c, c_row, add);
  switch (rows - i) {
    case 5: tile(5, width, depth, a, b, b_row, c, c_row, add); break;
    case 4: tile(4, width, depth, a, b, b_row, c, c_row, add); break;
    case 3: tile(3, width, depth, a, b, b_row, c, c_row, add); break;
    case 2: tile(2, width, depth, a, b, b_row, c, c_row, add); break;
    case 1: tile(1, width, depth, a, b, b_row, c, c_row, add); break;
    default: break;
  }
}

// c[rows, cols] (+)= a b, cols a multiple of LANES. `b_panel` is where the
// next WIDE * LANES columns of b begin: that many floats further if b is
// row-major, `depth` times as many if it is packed in panels.
INLINE void product(int64_t rows, int64_t cols, int64_t depth, mat a,
                    const float* b, int64_t b_row, int64_t b_panel, float* c,
                    int64_t c_row, const int add) {
  const int64_t panel = WIDE * LANES;
  int64_t j = 0;
  for (; j + panel <= cols; j += panel, b += b_panel)
    strip(WIDE, rows, depth, a, b, b_row, c + j, c_row, add);
  switch ((cols - j) / LANES) {
#if WIDE > 2
    case 3: strip(3, rows, depth, a, b, b_row, c + j, c_row, add); break;
    case 2: strip(2, rows, depth, a, b, b_row, c + j, c_row, add); break;
#endif
    case 1: strip(1, rows, depth, a, b, b_row, c + j, c_row, add); break;
    default: break;
  }
}

static __attribute__((noinline)) void multiply(
    int64_t rows, int64_t cols, int64_t depth, mat a, const float* b,
    int64_t b_row, int64_t b_panel, float* c, int64_t c_row) {
  product(rows, cols, depth, a, b, b_row, b_panel, c, c_row, 0);
}

static __attribute__((noinline)) void accumulate(
    int64_t rows, int64_t cols, int64_t depth, mat a, const float* b,
    int64_t b_row, float* c, int64_t c_row) {
  product(rows, cols, depth, a, b, b_row, WIDE * LANES, c, c_row, 1);
}

// The transpose of x[n, depth] in panels [depth, WIDE * LANES], padded with 0.
static void pack(float* out, const float* x, int64_t n, int64_t depth) {
  const int64_t panel = WIDE * LANES;
  for (int64_t j = 0; j < n; j += panel, out += depth * panel) {
    int64_t some = n - j < panel ? n - j : panel;
    for (int64_t i = 0; i < some; i++)
      for (int64_t k = 0; k < depth; k++)
        out[k * panel + i] = x[(j + i) * depth + k];
    for (int64_t i = some; i < panel; i++)
      for (int64_t k = 0; k < depth; k++) out[k * panel + i] = 0.0f;
  }
}

// Positions of a head lie a power of two apart, where they push one another
// out of the first cache; so a task works on copies without gaps.
static void copy(float* out, int64_t out_stride, const float* x,
                 int64_t x_stride, int64_t n, int64_t depth) {
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < depth; k += LANES)
      store(out + i * out_stride + k, load(x + i * x_stride + k));
}

INLINE vec either(ivec mask, vec yes, vec no) {
  return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

// e^x to about 2e-7 of it, for x <= 0; 0 below -87. NaN stays NaN: a run that
// has diverged must be seen to.
INLINE vec exponential(vec x) {
  vec low = all(-87.0f);
  ivec zero = x < low;
  x = either(zero, low, x);
  // x = n log(2) + r with |r| <= log(2) / 2; adding 1.5 * 2^23 rounds.
  vec magic = all(12582912.0f);
  vec shifted = x * 1.44269504088896341f + magic;
  vec n = shifted - magic;
  vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec y = all(1.0f / 5040);
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  // The low bits of `shifted` hold n.
  vec power = (vec)(((ivec)shifted << 23) + 0x3f800000);
  return either(zero, (vec){0}, y * power);
}

INLINE float sum_of(vec x) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}
INLINE float largest_of(vec x) {
  float top = x[0];
  for (int i = 1; i < LANES; i++) top = x[i] > top ? x[i] : top;
  return top;
}

typedef struct { int64_t row, begin, end; } span;

// Everything a call works on. The last group is the backward pass's.
typedef struct {
  int64_t batch, length, heads, depth;
  const float *query, *key, *value, *bias;
  const int32_t* segments;
  float *context, *statistics;
  const float *gradient, *known_context, *known_statistics;
  float *to_query, *to_key, *to_value;
  int backward;
  span* spans;
  int64_t num_tasks;  // a head of a span each
  atomic_llong next;
  atomic_int failed;
} work;

INLINE int64_t round_up(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// What a task works on: its place in the arrays, and scratch memory.
typedef struct {
  int64_t n, padded, block, depth;
  int64_t stride;     // between positions of a head
  int64_t offset;     // of the task's first position and head
  const float* bias;  // of distance 0
  float* mask;        // [padded]: 0, or MASKED
  float *turned_key, *turned_value;                 // see `pack`
  float *query, *key, *value, *gradient, *context;  // [n, depth]
  float *to_key, *to_value;                         // [n, depth]
  float *weights, *others;                          // [block, padded]
} place;

static int64_t block_of(int64_t n) {
  int64_t rows = BLOCK / round_up(n) / ROWS * ROWS;
  rows = rows < ROWS ? ROWS : rows;
  return rows < n ? rows : n;
}

// Lays out a task's memory, [size] floats from `from`; NULL asks for the size.
static place layout(const work* w, const span* s, int64_t head, float* from,
                    int64_t* size) {
  const int64_t panel = WIDE * LANES;
  place p = {.n = s->end - s->begin, .depth = w->depth};
  p.padded = round_up(p.n);
  p.block = block_of(p.n);
  p.stride = w->heads * w->depth;
  p.offset = (s->row * w->length + s->begin) * p.stride + head * w->depth;
  p.bias = w->bias + head * (2 * w->length - 1) + w->length - 1;
  int64_t flat = round_up(p.n * p.depth);
  int64_t turned = (p.n + panel - 1) / panel * panel * p.depth;
  int64_t at = 0;
#define TAKE(name, floats) (p.name = from ? from + at : NULL, at += (floats))
  TAKE(mask, p.padded);
  TAKE(turned_key, turned);
  TAKE(turned_value, turned);
  TAKE(query, flat);
  TAKE(key, flat);
  TAKE(value, flat);
  TAKE(gradient, flat);
  TAKE(context, flat);
  TAKE(to_key, flat);
  TAKE(to_value, flat);
  TAKE(weights, p.block * p.padded);
  TAKE(others, p.block * p.padded);
#undef TAKE
  *size = at;
  return p;
}

static void fetch(const work* w, const span* s, const place* p) {
  const int32_t* ids = w->segments + s->row * w->length + s->begin;
  for (int64_t i = 0; i < p->padded; i++)
    p->mask[i] = i < p->n && ids[i] != 0 ? 0.0f : MASKED;
  copy(p->query, p->depth, w->query + p->offset, p->stride, p->n, p->depth);
  copy(p->key, p->depth, w->key + p->offset, p->stride, p->n, p->depth);
  copy(p->value, p->depth, w->value + p->offset, p->stride, p->n, p->depth);
  pack(p->turned_key, p->key, p->n, p->depth);
}

// Adds the bias of the query at `position` and the mask to its n logits. What
// is read beyond the bias's row is masked; it is read from a copy.
INLINE vec biased(const place* p, const float* logits, int64_t position,
                  int64_t j) {
  const float* from = p->bias - position + j;
  vec bias;
  if (j + LANES <= p->n) {
    bias = load(from);
  } else {
    bias = (vec){0};
    for (int64_t i = 0; i < p->n - j; i++) bias[i] = from[i];
  }
  return load(logits + j) + bias + load(p->mask + j);
}

static void forward(const work* w, const span* s, int64_t head,
                    const place* p) {
  const int64_t depth = p->depth, panel = WIDE * LANES;
  fetch(w, s, p);
  float* statistics =
      w->statistics + (s->row * w->heads + head) * w->length + s->begin;
  for (int64_t first = 0; first < p->n; first += p->block) {
    int64_t rows = p->n - first < p->block ? p->n - first : p->block;
    mat query = {p->query + first * depth, depth, 1};
    multiply(rows, p->padded, depth, query, p->turned_key, panel,
             depth * panel, p->weights, p->padded);
    for (int64_t i = 0; i < rows; i++) {
      float* row = p->weights + i * p->padded;
      vec top = all(MASKED);
      for (int64_t j = 0; j < p->padded; j += LANES) {
        vec x = biased(p, row, first + i, j);
        store(row + j, x);
        top = either(x > top, x, top);
      }
      float most = largest_of(top);
      vec sum = {0};
      for (int64_t j = 0; j < p->padded; j += LANES) {
        vec x = exponential(load(row + j) - most);
        store(row + j, x);
        sum += x;
      }
      float total = sum_of(sum);
      statistics[first + i] = most + logf(total);
      p->others[i] = 1.0f / total;
    }
    mat weights = {p->weights, p->padded, 1};
    float* context = p->context + first * depth;
    multiply(rows, depth, p->n, weights, p->value, depth, panel, context,
             depth);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t k = 0; k < depth; k += LANES)
        store(context + i * depth + k,
              load(context + i * depth + k) * p->others[i]);
  }
  copy(w->context + p->offset, p->stride, p->context, depth, p->n, depth);
}

static void backward(const work* w, const span* s, int64_t head,
                     const place* p) {
  const int64_t depth = p->depth, panel = WIDE * LANES;
  fetch(w, s, p);
  copy(p->gradient, depth, w->gradient + p->offset, p->stride, p->n, depth);
  copy(p->context, depth, w->known_context + p->offset, p->stride, p->n, depth);
  pack(p->turned_value, p->value, p->n, depth);
  memset(p->to_key, 0, p->n * depth * sizeof(float));
  memset(p->to_value, 0, p->n * depth * sizeof(float));
  const float* statistics =
      w->known_statistics + (s->row * w->heads + head) * w->length + s->begin;
  for (int64_t first = 0; first < p->n; first += p->block) {
    int64_t rows = p->n - first < p->block ? p->n - first : p->block;
    mat query = {p->query + first * depth, depth, 1};
    mat gradient = {p->gradient + first * depth, depth, 1};
    multiply(rows, p->padded, depth, query, p->turned_key, panel,
             depth * panel, p->weights, p->padded);
    multiply(rows, p->padded, depth, gradient, p->turned_value, panel,
             depth * panel, p->others, p->padded);
    for (int64_t i = 0; i < rows; i++) {
      float* row = p->weights + i * p->padded;
      float* other = p->others + i * p->padded;
      const float* g = gradient.p + i * depth;
      const float* c = p->context + (first + i) * depth;
      vec product = {0};
      for (int64_t k = 0; k < depth; k += LANES)
        product += load(g + k) * load(c + k);
      float mean = sum_of(product), most = statistics[first + i];
      for (int64_t j = 0; j < p->padded; j += LANES) {
        vec x = exponential(biased(p, row, first + i, j) - most);
        store(row + j, x);
        store(other + j, x * (load(other + j) - mean));
      }
    }
    mat weights = {p->others, p->padded, 1};
    // The context of these queries is not needed again.
    multiply(rows, depth, p->n, weights, p->key, depth, panel,
             p->context + first * depth, depth);
    mat turned = {p->others, 1, p->padded};
    accumulate(p->n, depth, rows, turned, query.p, depth, p->to_key, depth);
    turned.p = p->weights;
    accumulate(p->n, depth, rows, turned, gradient.p, depth, p->to_value,
               depth);
  }
  copy(w->to_query + p->offset, p->stride, p->context, depth, p->n, depth);
  copy(w->to_key + p->offset, p->stride, p->to_key, depth, p->n, depth);
  copy(w->to_value + p->offset, p->stride, p->to_value, depth, p->n, depth);
}

// Takes tasks until none is left.
static void run_tasks(work* w) {
  float* scratch = NULL;
  int64_t room = 0;
  for (;;) {
    int64_t task = atomic_fetch_add(&w->next, 1), size;
    if (task >= w->num_tasks) break;
    const span* s = w->spans + task / w->heads;
    layout(w, s, task % w->heads, NULL, &size);
    if (size > room) {
      free(scratch);
      scratch = aligned_alloc(64, (size * sizeof(float) + 63) / 64 * 64);
      room = scratch ? size : 0;
    }
    if (!scratch) {
      atomic_store(&w->failed, 1);
      continue;
    }
    place p = layout(w, s, task % w->heads, scratch, &size);
    if (w->backward) {
      backward(w, s, task % w->heads, &p);
    } else {
      forward(w, s, task % w->heads, &p);
    }
  }
  free(scratch);
}

// A helper may start after the call that asked for it is over, or never end
// up with a task; so what helpers share outlives the call.
typedef struct {
  atomic_int holders, open;
  work* w;
} team;

static void leave(team* t) {
  if (atomic_fetch_sub(&t->holders, 1) == 1) free(t);
}

static void help(void* data) {
  team* t = data;
  // `open` counts the members at work; it is -1 once the call is over.
  int members = atomic_load(&t->open);
  while (members > 0 &&
         !atomic_compare_exchange_weak(&t->open, &members, members + 1)) {
  }
  if (members > 0) {
    run_tasks(t->w);
    atomic_fetch_sub(&t->open, 1);
  }
  leave(t);
}

INLINE void pause_core(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

static XLA_FFI_Error* failure(XLA_FFI_CallFrame* frame, const char* message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL,
                                    message, XLA_FFI_Error_Code_INTERNAL};
  return frame->api->XLA_FFI_Error_Create(&args);
}

// Writes zeros to the results at positions that are no example's.
static void clear(const work* w, int64_t row, int64_t begin, int64_t end) {
  const int64_t width = w->heads * w->depth;
  const int64_t offset = (row * w->length + begin) * width;
  const int64_t size = (end - begin) * width * sizeof(float);
  if (end == begin) return;
  if (w->backward) {
    memset(w->to_query + offset, 0, size);
    memset(w->to_key + offset, 0, size);
    memset(w->to_value + offset, 0, size);
    return;
  }
  memset(w->context + offset, 0, size);
  for (int64_t head = 0; head < w->heads; head++)
    memset(w->statistics + (row * w->heads + head) * w->length + begin, 0,
           (end - begin) * sizeof(float));
}

// Finds the examples: runs of positions with one segment number, which may
// have padding, number 0, inside.
static void find_spans(work* w) {
  int64_t count = 0;
  for (int64_t b = 0; b < w->batch; b++) {
    const int32_t* ids = w->segments + b * w->length;
    int32_t last = 0;
    int64_t done = 0;
    for (int64_t s = 0; s < w->length; s++) {
      if (ids[s] == 0) continue;
      if (ids[s] != last) {
        clear(w, b, done, s);
        w->spans[count++] = (span){b, s, s};
      }
      w->spans[count - 1].end = done = s + 1;
      last = ids[s];
    }
    clear(w, b, done, w->length);
  }
  w->num_tasks = count * w->heads;
}

// Asks XLA's threads for help; returns what they share, NULL without any.
static team* call_help(XLA_FFI_CallFrame* frame, work* w,
                       XLA_FFI_Error** error) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args size = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx,
      &threads};
  *error = frame->api->XLA_FFI_ThreadPool_NumThreads(&size);
  if (*error || threads < 2 || w->num_tasks < 2) return NULL;
  team* t = malloc(sizeof(team));
  if (!t) return NULL;
  atomic_init(&t->holders, 1);
  atomic_init(&t->open, 1);
  t->w = w;
  for (int64_t i = 1; i < threads && i < w->num_tasks && !*error; i++) {
    atomic_fetch_add(&t->holders, 1);
    XLA_FFI_ThreadPool_Schedule_Args args = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help,
        t};
    *error = frame->api->XLA_FFI_ThreadPool_Schedule(&args);
    if (*error) leave(t);
  }
  return t;
}

static XLA_FFI_Error* run(XLA_FFI_CallFrame* frame, work* w) {
  w->spans = malloc(w->batch * w->length * sizeof(span));
  if (!w->spans) return failure(frame, "attention: out of memory");
  find_spans(w);
  atomic_init(&w->next, 0);
  atomic_init(&w->failed, 0);
  XLA_FFI_Error* error;
  team* t = call_help(frame, w, &error);
  run_tasks(w);
  if (t) {
    // The caller's own place is the last to close.
    int alone = 1;
    while (!atomic_compare_exchange_weak(&t->open, &alone, -1)) {
      alone = 1;
      pause_core();
    }
    leave(t);
  }
  free(w->spans);
  if (!error && atomic_load(&w->failed))
    error = failure(frame, "attention: out of memory");
  return error;
}

// Answers what XLA asks of a handler when it is registered.
static int is_question(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Extension_Base* extension = frame->extension_start;
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata* metadata =
      ((XLA_FFI_Metadata_Extension*)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}

static XLA_FFI_Buffer* argument(XLA_FFI_CallFrame* frame, int64_t i) {
  return frame->args.args[i];
}
static float* result(XLA_FFI_CallFrame* frame, int64_t i) {
  return ((XLA_FFI_Buffer*)frame->rets.rets[i])->data;
}

// query, key, value [B, S, H, K], bias, segments, ...
static work common(XLA_FFI_CallFrame* frame) {
  const int64_t* dims = argument(frame, 0)->dims;
  return (work){
      .batch = dims[0],
      .length = dims[1],
      .heads = dims[2],
      .depth = dims[3],
      .query = argument(frame, 0)->data,
      .key = argument(frame, 1)->data,
      .value = argument(frame, 2)->data,
      .bias = argument(frame, 3)->data,
      .segments = argument(frame, 4)->data,
  };
}

// -> context [B, S, H, K], statistics. Both are 0 at padding.
XLA_FFI_Error* attention_forward(XLA_FFI_CallFrame* frame) {
  if (is_question(frame)) return NULL;
  work w = common(frame);
  w.context = result(frame, 0);
  w.statistics = result(frame, 1);
  return run(frame, &w);
}

// ..., context, statistics, gradient of the context -> those of query, key,
// value; 0 at padding.
XLA_FFI_Error* attention_backward(XLA_FFI_CallFrame* frame) {
  if (is_question(frame)) return NULL;
  work w = common(frame);
  w.known_context = argument(frame, 5)->data;
  w.known_statistics = argument(frame, 6)->data;
  w.gradient = argument(frame, 7)->data;
  w.to_query = result(frame, 0);
  w.to_key = result(frame, 1);
  w.to_value = result(frame, 2);
  w.backward = 1;
  return run(frame, &w);
}
