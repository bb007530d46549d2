"""Where a guest's time went, and which of its code ran: profiles and coverage, in the formats of others."""
