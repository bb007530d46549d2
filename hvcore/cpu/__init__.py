"""The processor, which has never heard of Xen: engine, its state, native code, loops."""
