"""The three engines that multiply a matrix of derivatives by vectors, and how much memory they may use."""
