"""From measured time and memory to dollars a million tokens, at rents that are given."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from tolserve.bench.cost.point import EngineName


@dataclass(frozen=True, kw_only=True)
class Rents:
    """Dollars an hour; what each token costs is time times these.

    Attributes:
        device_hour: a device that the paced engine stands for, without the memory that rows take.
        machine_hour: this machine, for the real engines.
        device_gb_hour: a GB of device memory that rows take (3 dollars over the 80 GB of a device).
        host_gb_hour: a GB of a memory node's memory.

    Raises:
        ValueError: a negative rent.
    """

    device_hour: float = 3.0
    machine_hour: float = 0.1
    device_gb_hour: float = 0.0375
    host_gb_hour: float = 0.008

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; a rent must not be negative")

    def per_million(self, engine: EngineName, tokens_per_s: float, *, device_bytes: float, node_bytes: float) -> float:
        """Dollars for a million output tokens.

        Args:
            device_bytes: of rows, held where the engine computes.
            node_bytes: of rows, on all memory nodes together.
        """
        hour = self.device_hour if engine == "paced" else self.machine_hour
        hour += (device_bytes * self.device_gb_hour + node_bytes * self.host_gb_hour) / 1e9
        return hour / 3600 / tokens_per_s * 1e6


@dataclass(frozen=True, kw_only=True)
class Slo:
    """What a request must keep to count as good.

    Attributes:
        ttft_ms: to the first token (real engines).
        itl_ms: between its tokens, on average (real engines).
        slack: a step of the paced engine may take so many times its ideal.
    """

    ttft_ms: float = 200.0
    itl_ms: float = 20.0
    slack: float = 1.1

    def __post_init__(self) -> None:
        if min(self.ttft_ms, self.itl_ms) <= 0 or self.slack < 1:
            raise ValueError(
                f"--slo-ttft-ms {self.ttft_ms} and --slo-itl-ms {self.itl_ms} must be positive, --slo-slack "
                f"{self.slack} at least 1"
            )
