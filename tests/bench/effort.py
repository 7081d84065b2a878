"""How long to measure: for numbers to publish, or only to see that all of it works."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """`rounds` of all contenders, interleaved; `packets` a sample; `probes` a latency sample;
    `paced_calls` are told by SIP at its pace, in each of `sip_rounds`, and so many `dialogs` as
    fast as may be."""

    rounds: int
    packets: int
    packets_in_user_space: int
    program_rounds: int
    flows: tuple[int, ...]
    peers: tuple[int, ...]
    streams: int
    stream_seconds: float
    probes: int
    flood: int
    commands: int
    snapshot_peers: int
    watch_seconds: float
    paced_calls: int
    sip_rounds: int
    dialogs: int

    @property
    def steps(self) -> int:
        """How often a measurement tells what it is at."""
        by_rounds = len(self.flows) + 4  # streams, latency, peers, flood
        return by_rounds * self.rounds + len(self.peers) + 2 * self.commands + self.sip_rounds + 3


FULL = Effort(
    rounds=15,
    packets=200_000,
    packets_in_user_space=10_000,
    program_rounds=300,
    flows=(1, 1000),
    peers=(1, 10, 100, 1000, 10_000, 50_000),
    streams=1000,
    stream_seconds=1.0,
    probes=500,
    flood=300_000,
    commands=9,
    snapshot_peers=65_536,
    watch_seconds=5.0,
    paced_calls=100,
    sip_rounds=7,
    dialogs=5_000,
)

SHORT = Effort(
    rounds=1,
    packets=2_000,
    packets_in_user_space=200,
    program_rounds=3,
    flows=(1,),
    peers=(1,),
    streams=10,
    stream_seconds=0.05,
    probes=5,
    flood=5_000,
    commands=1,
    snapshot_peers=1_000,
    watch_seconds=1.0,
    paced_calls=10,
    sip_rounds=1,
    dialogs=50,
)
