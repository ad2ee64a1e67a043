"""Which tasks are alike: a category is what a transfer should stay inside of.

The categories of Su et al., "On Transferability of Prompt Tuning for Natural
Language Processing", NAACL 2022 (sentiment, NLI, ethics, paraphrase, question
answering, summarization), and those of the tasks that come with us.
"""

from collections.abc import Mapping, Sequence
import re

_BY_CATEGORY: Mapping[str, Sequence[str]] = {
  'sentiment': (
    *('imdb', 'sst2', 'laptop', 'restaurant', 'movie', 'tweet'),
    'tweet_sentiment',
    *('yelp_polarity', 'rotten_tomatoes', 'movie_rationales'),
  ),
  'nli': (
    *('mnli', 'qnli', 'snli', 'rte', 'cb', 'super_glue_rte', 'scitail', 'anli'),
  ),
  'paraphrase': ('qqp', 'mrpc', 'paws', 'paws_wiki', 'stsb'),
  'ethics': ('deontology', 'justice'),
  'qa': (
    *('squad', 'record', 'boolq', 'multirc', 'nq', 'nq_open'),
    *('mrqa_hotpot_qa', 'mrqa_natural_questions', 'mrqa_news_qa'),
    'mrqa_search_qa',
  ),
  'acceptability': ('cola',),
  'coreference': ('wsc', 'wsc_classification', 'winogrande'),
  'causes': ('copa',),
  'words': ('wic',),
  'summarization': ('multi_news', 'samsum'),
  'data to text': ('e2e_cleaned', 'gem_e2e_nlg', 'gem_web_nlg_en', 'web_nlg'),
}
CATEGORIES: Mapping[str, str] = {
  task: category for category, tasks in _BY_CATEGORY.items() for task in tasks
}


def category_of(task: str, given: Mapping[str, str] | None = None) -> str:
  """Returns a task's category; one that nobody knows is one of its own.

  Args:
    task: its name; digits for label words ('rte_digits') change nothing.
    given: the user's own, by task, which stand before ours.
  """
  known = {**CATEGORIES, **(given or {})}
  plain = re.sub(r'[^a-z0-9]+', '_', task.lower()).removesuffix('_digits')
  return known.get(task) or known.get(plain) or task


def ordered(
  tasks: Sequence[str], given: Mapping[str, str] | None = None
) -> list[str]:
  """Returns the tasks with those of a category side by side.

  Categories stand in the order of their first task.
  """
  first: dict[str, int] = {}
  for place, task in enumerate(tasks):
    first.setdefault(category_of(task, given), place)
  return sorted(tasks, key=lambda task: first[category_of(task, given)])
