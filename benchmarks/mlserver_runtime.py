"""What MLServer runs in the benchmark of serving; imported by MLServer, in its own virtual environment."""

import os

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import decode_args


class OnnxModel(MLModel):
    """A network in onnxruntime."""

    async def load(self) -> bool:
        """Open the file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["SDZOO_THREADS"])
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    @decode_args
    async def predict(self, images: np.ndarray) -> np.ndarray:
        """Return the logits."""
        logits: np.ndarray = self._session.run(None, {"images": images})[0]
        return logits
