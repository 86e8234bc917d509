"""Random and broken inputs of every kind. Each must give a correct map or table, or one clear error message."""
