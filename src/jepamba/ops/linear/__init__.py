"""Matrix products with a scale for each row, and with fp32 results."""
