"""What Megatron says on its way, kept from the terminal."""

import contextlib
import io
import logging
import warnings
from collections.abc import Generator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Turn what Megatron prints and warns inside the block into debug log records."""
    out = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(out):
        warnings.simplefilter("always")
        yield
    for line in out.getvalue().splitlines():
        if line.strip():
            logger.debug("megatron: %s", line.rstrip())
    for warning in caught:
        logger.debug("megatron: %s", warning.message)
