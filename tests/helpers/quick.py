"""XLA's flags of tests, which spend their time compiling, not computing.

`tests/tasks/test_docs.py` runs commands without them, as users do.
"""

# Fused loops without MLIR and one module instead of up to 32: a tiny step
# compiles in a quarter of the time that optimisation level 0 alone leaves.
FLAGS = (
  '--xla_backend_optimization_level=0'
  ' --xla_llvm_disable_expensive_passes=true'
  ' --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1'
)
