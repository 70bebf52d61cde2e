"""τ-bench (arXiv 2406.12045): its retail and airline desks, on tables that fork for nothing."""
