# A person's prompt on the console, and another on the framebuffer's first terminal.
clear >/dev/tty1
export PS1='screen# '
setsid sh -c 'exec sh -i </dev/tty1 >/dev/tty1 2>&1' &
export PS1='guest# '
exec setsid sh -c 'exec sh -i </dev/hvc0 >/dev/hvc0 2>&1'
