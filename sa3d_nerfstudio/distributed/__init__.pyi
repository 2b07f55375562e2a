from .launch import check_launch, join, joined, rank_in_environment
from .ranks import ProcessRanks, Ranks
from .watch import RankFault, Watch

__all__ = [
    "ProcessRanks",
    "RankFault",
    "Ranks",
    "Watch",
    "check_launch",
    "join",
    "joined",
    "rank_in_environment",
]
