"""What everything stands on: names, settings, cells, costs, errors. Imports no other room."""
