"""WinoGrande, Yelp, SciTail and PAWS: the papers' group "others"; IMDB, SNLI.

T5 was not trained on them, so the format is its rule: the task's name, then
the features by name in the order of the alphabet, and the data's own label
names (Yelp's are '1' and '2', IMDB's 'neg' and 'pos', for which SST-2's words
stand). IMDB and SNLI are sources of the study of prompt transferability.
"""

from tasks import fillers
from tasks.glue import ACCURACY
from tasks.splits import halve, hold_out, own
from tasks.table import Task, digits, register

# fmt: off
WINOGRANDE = Task(
  name='winogrande', tfds_name='winogrande:1.2.0',
  counts={'train_xl': 40_398, 'validation': 1_267},
  splits=hold_out(train='train_xl'), train_examples=40_398,
  inputs='winogrande option1: {option1} option2: {option2}'
         ' sentence: {sentence}',
  labels=('1', '2'),
  masked='{mask} {sentence}{sep}{option1}, {option2}',
  fillers={'1': ' first', '2': ' second'},
  metrics=ACCURACY)
YELP_POLARITY = Task(
  name='yelp_polarity', tfds_name='yelp_polarity_reviews:0.2.0',
  counts={'train': 560_000, 'test': 38_000},
  splits=hold_out(test='test', most=100_000), train_examples=100_000,
  inputs='yelp_polarity text: {text}',
  labels=('negative', 'positive'),
  masked='{mask} {text}',
  fillers=fillers.SENTIMENT,
  metrics=ACCURACY,
  note='100,000 of the 560,000 training examples, as in the papers')
SCITAIL = Task(
  name='scitail', tfds_name='sci_tail:1.0.0',
  counts={'train': 23_097, 'validation': 1_304}, splits=halve,
  inputs='scitail hypothesis: {hypothesis} premise: {premise}',
  labels=('entails', 'neutral'),
  masked='{mask} {premise}{sep}{hypothesis}',
  fillers=fillers.pairs('neutral', 'entails'),
  metrics=ACCURACY,
  note='halves of the validation split, as in the papers; the official test'
       ' split is not used')
PAWS_WIKI = Task(
  name='paws_wiki', tfds_name='paws_wiki/labeled_final_tokenized:1.1.0',
  counts={'train': 49_401, 'validation': 8_000, 'test': 8_000}, splits=own(),
  inputs='paws_wiki sentence1: {sentence1} sentence2: {sentence2}',
  labels=('different_meaning', 'paraphrase'),
  masked='{mask} {sentence1}{sep}{sentence2}',
  fillers=fillers.pairs('different_meaning', 'paraphrase'),
  metrics=ACCURACY)
IMDB = Task(
  name='imdb', tfds_name='imdb_reviews/plain_text:1.0.0',
  counts={'train': 25_000, 'test': 25_000}, splits=hold_out(test='test'),
  inputs='imdb text: {text}', labels=('negative', 'positive'),
  masked='{mask} {text}', fillers=fillers.SENTIMENT, metrics=ACCURACY)
SNLI = Task(
  name='snli', tfds_name='snli:1.1.0',
  counts={'train': 550_152, 'validation': 10_000, 'test': 10_000},
  splits=own(), inputs='snli hypothesis: {hypothesis} premise: {premise}',
  labels=('entailment', 'neutral', 'contradiction'),
  masked='{mask} {premise}{sep}{hypothesis}', fillers=fillers.ENTAILMENT,
  metrics=ACCURACY,
  note='pairs on which the annotators did not agree have no label')

register([WINOGRANDE, YELP_POLARITY, SCITAIL, PAWS_WIKI, IMDB, SNLI])

register([
  digits(WINOGRANDE, 'winogrande sentence: {sentence} option0: {option1}'
                     ' option1: {option2}'),
  digits(YELP_POLARITY, 'yelp_polarity sentence: {text}'),
  digits(SCITAIL, 'scitail premise: {premise} hypothesis: {hypothesis}'),
  digits(PAWS_WIKI, 'paws sentence1: {sentence1} sentence2: {sentence2}'),
])
# fmt: on
