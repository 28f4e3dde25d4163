"""HunyuanVideo without a host: transformer, causal VAE, text encoders, sampling and files.

Importing the package reads no file, loads no weights and asks no device anything; each subpackage is imported by the
code that needs it.
"""

__version__ = "0.1.0"
