"""The processor, which has never heard of Xen: engine, its state, the compiled core, loops."""
