"""A table of Macs: memory, the GPU's share of it, and the memory bandwidth that Apple states."""

from dataclasses import dataclass

from .. import device

# GB/s as Apple states it; of a chip sold with two, the higher.
BANDWIDTHS = {
    "M1": 68.25,
    "M1 Pro": 200.0,
    "M1 Max": 400.0,
    "M1 Ultra": 800.0,
    "M2": 100.0,
    "M2 Pro": 200.0,
    "M2 Max": 400.0,
    "M2 Ultra": 800.0,
    "M3": 100.0,
    "M3 Pro": 150.0,
    "M3 Max": 400.0,
    "M3 Ultra": 819.0,
    "M4": 120.0,
    "M4 Pro": 273.0,
    "M4 Max": 546.0,
    "M5": 153.0,
    "M5 Pro": 307.0,
    "M5 Max": 614.0,
}

# Bytes a second of the SSDs that chips come with, by the last word of their names: what testers commonly find.
SSDS = {"Pro": 5.5e9, "Max": 7.5e9, "Ultra": 7.5e9}
SLOWEST_SSD = 3e9

# Bytes to copy where the device's bandwidth is not known: enough for a figure, little enough for a short wait.
QUICK_COPY = 1 << 26

# Bytes a second to reckon with where a chip is unknown.
TYPICAL_BANDWIDTH = 1e11


@dataclass(frozen=True)
class Mac:
    """A chip with so many gigabytes of memory."""

    chip: str
    gigabytes: int

    @property
    def memory(self) -> int:
        """Bytes: Apple's gigabytes are binary."""
        return self.gigabytes << 30

    @property
    def usable(self) -> int:
        """Bytes that the GPU may hold unless more is allowed: two thirds, three quarters from 36 GB on."""
        return self.memory * 3 // 4 if self.gigabytes >= 36 else self.memory * 2 // 3

    @property
    def ssd(self) -> float:
        """Bytes a second, about."""
        return SSDS.get(self.chip.split()[-1], SLOWEST_SSD)

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return BANDWIDTHS[self.chip] * 1e9


MACS = (
    Mac("M1", 8),
    Mac("M2", 16),
    Mac("M4", 24),
    Mac("M1 Pro", 32),
    Mac("M5", 32),
    Mac("M3 Pro", 36),
    Mac("M4 Pro", 48),
    Mac("M1 Max", 64),
    Mac("M4 Max", 128),
    Mac("M5 Max", 128),
    Mac("M2 Ultra", 192),
    Mac("M3 Ultra", 512),
)


def own_bandwidth() -> tuple[float, bool]:
    """Bytes a second of this machine's memory, and whether they were measured, by a copy, rather than stated."""
    stated = None if device.is_cpu() else stated_bandwidth(device.device_name())
    return (device.copy_bandwidth(QUICK_COPY), True) if stated is None else (stated, False)


def stated_bandwidth(device_name: str) -> float | None:
    """Bytes a second of the chip that MLX calls so ("Apple M2 Pro"); None if it is none of Apple's in the table."""
    gigabytes = BANDWIDTHS.get(device_name.removeprefix("Apple "))
    return None if gigabytes is None else gigabytes * 1e9
