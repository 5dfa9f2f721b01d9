"""Operations of torch whose derivatives are missing or wrong, written out in others, and full float32 precision."""
