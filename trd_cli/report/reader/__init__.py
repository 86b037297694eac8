"""The page that a report is: its HTML, its assets, and the trajectories it shows."""
