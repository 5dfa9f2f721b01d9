"""The self-check of an operator, and the independent reference by difference quotients that it uses."""
