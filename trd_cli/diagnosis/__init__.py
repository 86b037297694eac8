"""One scoring pass of student and teacher over trajectories, and what it shows of prefixes that have gone wrong.

`onset` turns words into token ids, `scoring` computes the figures of positions, `engine` runs it on replicas, and
`files` holds the schemas of a diagnosis on disk.
"""
