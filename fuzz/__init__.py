"""Random and broken inputs of every kind: each must end in a right map or table, or in one clear line."""
