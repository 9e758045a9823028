"""Power and use of this machine's NVIDIA GPUs, from the driver's own library (NVML).

Called through ctypes: seven functions do not need a package. Signatures and units are those of the
NVML API reference: milliwatts, percent, millijoules.
"""

import ctypes
import os
from collections.abc import Iterable, Sequence
from ctypes import byref, c_uint, c_ulonglong, c_void_p

from glimt.bench.events import PowerEvent
from glimt.errors import BadSettings

_LIBRARY = "libnvidia-ml.so.1"


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", c_uint), ("memory", c_uint))


class Gpus:
    """The GPUs that CUDA_VISIBLE_DEVICES names, or all that the driver shows; `names`: each one's
    index or UUID.
    """

    def __init__(self) -> None:
        """Raises BadSettings without driver or GPU, or with one that does not tell its power."""
        try:
            self._nvml = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise BadSettings(
                f"--gpu reads the NVIDIA driver's {_LIBRARY}, which this machine does not have; "
                "the client must run where the GPUs are"
            ) from None
        if self._nvml.nvmlInit_v2():
            raise BadSettings("--gpu: the NVIDIA driver does not answer")
        self.names = tuple(self._names())
        self._handles = [self._handle(name) for name in self.names]
        if not self._handles:
            raise BadSettings("--gpu: the NVIDIA driver shows no GPU")
        for number, handle in enumerate(self._handles):
            if self._watts(handle) is None:
                raise BadSettings(
                    f"--gpu: GPU {number} does not tell its power, as virtual ones do not; "
                    "leave --gpu out"
                )

    def _names(self) -> Sequence[str]:
        """Indices or UUIDs."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            names = [name.strip() for name in visible.split(",") if name.strip()]
            if not names or names[0] == "-1":
                raise BadSettings("--gpu: CUDA_VISIBLE_DEVICES hides all GPUs from this command")
            return names
        count = c_uint()
        if self._nvml.nvmlDeviceGetCount_v2(byref(count)):
            raise BadSettings("--gpu: the NVIDIA driver does not answer")
        return [str(index) for index in range(count.value)]

    def _handle(self, name: str) -> c_void_p:
        handle = c_void_p()
        if name.isdecimal():
            failed = self._nvml.nvmlDeviceGetHandleByIndex_v2(c_uint(int(name)), byref(handle))
        else:
            failed = self._nvml.nvmlDeviceGetHandleByUUID(name.encode(), byref(handle))
        if failed:
            raise BadSettings(f"--gpu: the NVIDIA driver knows no GPU {name}")
        return handle

    def sample(self, at_ns: int) -> PowerEvent | None:
        """What they draw and do now; None if one of them does not answer."""
        watts = _all(self._watts(handle) for handle in self._handles)
        if watts is None:
            return None
        return PowerEvent(
            at_ns=at_ns,
            watts=watts,
            utilisation=_all(self._use(handle) for handle in self._handles) or [],
            joules=_all(self._joules(handle) for handle in self._handles),
        )

    def _watts(self, handle: c_void_p) -> float | None:
        value = c_uint()
        failed = self._nvml.nvmlDeviceGetPowerUsage(handle, byref(value))
        return None if failed else value.value / 1e3

    def _use(self, handle: c_void_p) -> float | None:
        """Share of the time in which a kernel ran; None where GPUs are split (MIG)."""
        value = _Utilisation()
        failed = self._nvml.nvmlDeviceGetUtilizationRates(handle, byref(value))
        return None if failed else value.gpu / 100

    def _joules(self, handle: c_void_p) -> float | None:
        """Since the driver was loaded; None on GPUs without the counter (before Volta)."""
        value = c_ulonglong()
        failed = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle, byref(value))
        return None if failed else value.value / 1e3


def _all(values: Iterable[float | None]) -> list[float] | None:
    """The values, if there is one of each GPU."""
    found = list(values)
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None
