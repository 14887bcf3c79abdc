"""Matrix products with row scales, and with fp32 results."""
