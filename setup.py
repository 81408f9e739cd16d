"""Everything about the package stands in pyproject.toml; this keeps an editable install from printing a banner."""

import warnings

from setuptools import setup

# setuptools warns at every editable install of folders with the package's name; here that folder is the package.
warnings.filterwarnings("ignore", message=r"\s*Editable installation")
setup()
