"""What a framebuffer shows: its pixels, pictures of it as files, and people who see it by VNC."""
