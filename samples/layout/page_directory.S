/* A kernel in miniature: code, one byte of data, and a page directory without .balign. */
	.globl	_start, boot_pgd
	.text
_start:
	hlt
	jmp	_start

	.data
counter:
	.byte	1

	.section .data.page_aligned, "aw"
boot_pgd:
	.fill	4096, 1, 0

	.bss
	.balign	16
stack:
	.skip	4096

	.section .note.GNU-stack, "", @progbits
