"""How a matrix of derivatives is multiplied: points, routes, traces, memory."""
