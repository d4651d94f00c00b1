"""The file of a profile: points measured step by step.

Two layouts, each as JSON (one object) or NPZ (one array per key). Times in ms, all positive; axes
rise strictly and have two points at least.

* dynosim: `prefill_tokens` (n,), `prefill_ms` (n,): a step that computes that many new prompt
  tokens in all; `decode_batch` (b,), `decode_context` (c,), `decode_ms` (b, c): a step that decodes
  that many sequences with that mean context.
* Dynamo's profiler: `prefill_isl` (n,), `prefill_ttft_ms` (n,); `decode_active_kv_tokens` (k,),
  `decode_context_length` (c,), `decode_itl` (k, c): a decode step by the sum of all contexts and
  their mean (whole tokens).

What the points mean between and beyond them is told in `dynosim.timing.profile`.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.errors import TraceError
from dynosim.files.user_text import parse_json
from dynosim.records import FloatArray
from dynosim.timing.model import StepTimeModel
from dynosim.timing.profile import DynamoProfileModel, PrefillCurve, ProfileModel

_OWN_KEYS = ("prefill_tokens", "prefill_ms", "decode_batch", "decode_context", "decode_ms")
_DYNAMO_KEYS = (
    "prefill_isl",
    "prefill_ttft_ms",
    "decode_active_kv_tokens",
    "decode_context_length",
    "decode_itl",
)


def load_profile(path: Path) -> StepTimeModel:
    """The model that a profile file describes, whichever of the two layouts it has.

    Raises: TraceError naming the file and the array that is missing or unusable.
    """
    arrays = _read_arrays(path)
    keys = _DYNAMO_KEYS if _DYNAMO_KEYS[0] in arrays else _OWN_KEYS
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise TraceError(
            f"missing (the file has {', '.join(sorted(arrays)) or 'nothing'};"
            f" expected {', '.join(keys)})",
            path=str(path),
            field=missing[0],
        )
    prefill_x = _axis(path, keys[0], arrays[keys[0]])
    prefill_ms = _times(path, keys[1], arrays[keys[1]], (len(prefill_x),))
    decode_x = _axis(path, keys[2], arrays[keys[2]])
    decode_y = _axis(path, keys[3], arrays[keys[3]])
    decode_ms = _times(path, keys[4], arrays[keys[4]], (len(decode_x), len(decode_y)))
    curve = PrefillCurve(prefill_x.tolist(), prefill_ms.tolist())
    model = DynamoProfileModel if keys is _DYNAMO_KEYS else ProfileModel
    return model(curve, decode_x, decode_y, decode_ms, name=path.name)


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        data = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise TraceError("no such profile (key timing.file)", path=str(path)) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TraceError(f"not a readable JSON or NPZ profile: {error}", path=str(path)) from None
    if not isinstance(data, dict):
        raise TraceError("expected one JSON object of arrays", path=str(path))
    return data


def _numbers(path: Path, key: str, value: Any) -> FloatArray:
    try:
        array = np.asarray(value)
    except ValueError:
        raise TraceError("rows differ in length", path=str(path), field=key) from None
    if array.dtype.kind not in "iuf":
        raise TraceError("expected numbers", path=str(path), field=key)
    if not np.all(np.isfinite(array)):
        raise TraceError("contains NaN or infinity", path=str(path), field=key)
    return array.astype(np.float64)


def _axis(path: Path, key: str, value: Any) -> FloatArray:
    array = _numbers(path, key, value)
    if array.ndim != 1 or len(array) < 2:
        raise TraceError("expected a list of two or more numbers", path=str(path), field=key)
    if np.any(np.diff(array) <= 0) or array[0] < 0:
        raise TraceError("expected rising numbers from 0 on", path=str(path), field=key)
    return array


def _times(path: Path, key: str, value: Any, shape: tuple[int, ...]) -> FloatArray:
    array = _numbers(path, key, value)
    if array.shape != shape:
        raise TraceError(f"shape {array.shape}, expected {shape}", path=str(path), field=key)
    if np.any(array <= 0):
        raise TraceError("expected times above 0 ms", path=str(path), field=key)
    return array
