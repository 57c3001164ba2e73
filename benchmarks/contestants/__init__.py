"""The sites that are compared: the same few pages, each on its own way of recording referrals."""
