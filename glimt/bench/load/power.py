"""Power and use of this machine's NVIDIA GPUs, from the driver's own library (NVML).

Called through ctypes: six functions do not need a package. Signatures and units are those of the
NVML API reference: milliwatts, percent, millijoules.
"""

import ctypes
from ctypes import byref, c_uint, c_ulonglong, c_void_p

from glimt.bench.events import PowerEvent
from glimt.errors import BadSettings

_LIBRARY = "libnvidia-ml.so.1"


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", c_uint), ("memory", c_uint))


class Gpus:
    """All GPUs that the driver shows."""

    def __init__(self) -> None:
        """Raises BadSettings if there is no driver or no GPU."""
        try:
            self._nvml = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise BadSettings(
                f"--gpu reads the NVIDIA driver's {_LIBRARY}, which this machine does not have; "
                "the client must run where the GPUs are"
            ) from None
        count = c_uint()
        if self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetCount_v2(byref(count)):
            raise BadSettings("--gpu: the NVIDIA driver does not answer")
        self._handles = [self._handle(index) for index in range(count.value)]
        if not self._handles:
            raise BadSettings("--gpu: the NVIDIA driver shows no GPU")

    def _handle(self, index: int) -> c_void_p:
        handle = c_void_p()
        if self._nvml.nvmlDeviceGetHandleByIndex_v2(c_uint(index), byref(handle)):
            raise BadSettings(f"--gpu: the NVIDIA driver does not give GPU {index}")
        return handle

    def sample(self, at_ns: int) -> PowerEvent:
        """What they draw and do now."""
        joules = [self._joules(handle) for handle in self._handles]
        known = [value for value in joules if value is not None]
        return PowerEvent(
            at_ns=at_ns,
            watts=[self._watts(handle) for handle in self._handles],
            utilisation=[self._use(handle) for handle in self._handles],
            joules=known if len(known) == len(joules) else None,
        )

    def _watts(self, handle: c_void_p) -> float:
        value = c_uint()
        failed = self._nvml.nvmlDeviceGetPowerUsage(handle, byref(value))
        return 0.0 if failed else value.value / 1e3

    def _use(self, handle: c_void_p) -> float:
        value = _Utilisation()
        failed = self._nvml.nvmlDeviceGetUtilizationRates(handle, byref(value))
        return 0.0 if failed else value.gpu / 100

    def _joules(self, handle: c_void_p) -> float | None:
        """Since the driver was loaded; None on GPUs without the counter (before Volta)."""
        value = c_ulonglong()
        failed = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle, byref(value))
        return None if failed else value.value / 1e3
