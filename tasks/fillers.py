"""What fills the mask of an encoder (RoBERTa) for the classes of the tasks.

The words are those of LM-BFF (Gao et al., ACL 2021, table 1) and of the study
of prompt transferability (Su et al., NAACL 2022); each is one token, with the
blank before it, of the vocabulary that GPT-2 and RoBERTa share. The mask stands
in front, where no cut comes near it.
"""

from collections.abc import Mapping

SENTIMENT: Mapping[str, str] = {'negative': ' terrible', 'positive': ' great'}
ENTAILMENT: Mapping[str, str] = {
  'entailment': ' yes',
  'neutral': ' maybe',
  'contradiction': ' no',
}
# Of the polarities of SemEval 2014, and those of tweets.
ASPECT: Mapping[str, str] = {
  'negative': ' negative',
  'neutral': ' neutral',
  'positive': ' positive',
  'conflict': ' conflict',
}
TWEET: Mapping[str, str] = {k: w for k, w in ASPECT.items() if k != 'conflict'}


def pairs(no: str, yes: str) -> dict[str, str]:
  """Returns the fillers of two classes that answer a question.

  Args:
    no: the label word of 'it is not so'.
    yes: that of 'it is so'.
  """
  return {no: ' no', yes: ' yes'}
