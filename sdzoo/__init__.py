"""Deep Networks with Stochastic Depth (Huang et al., ECCV 2016) as a model zoo for timm.

Importing the package registers the networks ``sd_resnet*`` and the data sets ``torch/sd_*`` with timm.
"""

from sdzoo.models import registry as _registry  # noqa: F401  registers the names
from sdzoo.models.sd_resnet import SdResNet
from sdzoo.models.skip import skip_drop_path, unskip
from sdzoo.models.survival import survival_probabilities
from sdzoo.training import data as _data

__version__ = "0.1.0"
__all__ = ["SdResNet", "__version__", "skip_drop_path", "survival_probabilities", "unskip"]

_data.register()
