"""The report's page: its HTML, its assets, and the trajectories it shows. Only `report.write` uses it."""
