"""What a guest did, written down: records, the formats they are kept in, and what can be said of them."""
