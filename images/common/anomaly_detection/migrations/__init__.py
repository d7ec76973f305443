"""The schema of the `training` database as numbered SQL files, applied in order by `Database.migrate`."""
