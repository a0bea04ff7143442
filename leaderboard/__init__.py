"""From records to boards to a static site. Installed as `normbench.leaderboard`; never torch."""
