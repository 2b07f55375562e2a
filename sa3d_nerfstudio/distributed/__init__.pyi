from .launch import join, rank_in_environment
from .ranks import ProcessRanks, Ranks
from .watch import RankFault, Watch

__all__ = ["ProcessRanks", "RankFault", "Ranks", "Watch", "join", "rank_in_environment"]
