"""The tasks: `import tasks` registers them all with SeqIO.

Neither disk nor network is touched. The tables are in `glue`, `super_glue`,
`qa`, `other` and `nlg`; `python -m tasks.show` prints them. `own` has those
whose data are files of your own. What is mixed is in `mixtures`.
"""

# Imported for what they register. TensorFlow comes first, quietly, and mixtures
# last, since they name tasks.
# isort: off
import mpt_jax.data.libraries  # noqa: F401
from tasks import glue  # noqa: F401
from tasks import super_glue  # noqa: F401
from tasks import qa  # noqa: F401
from tasks import other  # noqa: F401
from tasks import nlg  # noqa: F401
from tasks import own  # noqa: F401
from tasks import mixtures  # noqa: F401
# isort: on
