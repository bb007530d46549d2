/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The little of string.h that the compiler and the samples need, and a printf:
 * %c %s %d %u %x %p, with l or ll, a width, and 0 as padding.
 */
#include "guest.h"

void *memset(void *to, int byte, ulong count)
{
    u8 *out = to;
    while (count--)
        *out++ = (u8)byte;
    return to;
}

void *memcpy(void *to, const void *from, ulong count)
{
    u8 *out = to;
    const u8 *in = from;
    while (count--)
        *out++ = *in++;
    return to;
}

int memcmp(const void *a, const void *b, ulong count)
{
    const u8 *left = a, *right = b;
    for (; count; count--, left++, right++)
        if (*left != *right)
            return *left - *right;
    return 0;
}

ulong strlen(const char *text)
{
    ulong length = 0;
    while (text[length])
        length++;
    return length;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (u8)*a - (u8)*b;
}

int strncmp(const char *a, const char *b, ulong count)
{
    for (; count && *a && *a == *b; count--)
        a++, b++;
    return count ? (u8)*a - (u8)*b : 0;
}

struct line {
    char text[256];
    ulong used;
    int written;
};

static void flush(struct line *line)
{
    console_write(line->text, line->used);
    line->used = 0;
}

static void put(struct line *line, char c)
{
    if (c == '\n')
        put(line, '\r');
    line->text[line->used++] = c;
    line->written++;
    if (line->used == sizeof(line->text))
        flush(line);
}

/* 64 by 32 bits: i386 has no divide that yields a 64-bit quotient, and there is no libgcc here. */
static u32 divide(u64 *value, u32 base)
{
    u32 high = (u32)(*value >> 32), low = (u32)*value;
    u32 quotient_high = high / base, remainder = high % base, quotient_low;
    __asm__("divl %4" : "=a"(quotient_low), "=d"(remainder) : "a"(low), "d"(remainder), "r"(base) : "cc");
    *value = ((u64)quotient_high << 32) | quotient_low;
    return remainder;
}

static void put_padded(struct line *line, const char *text, ulong length, int width, char padding)
{
    for (int left = width - (int)length; left > 0; left--)
        put(line, padding);
    while (length--)
        put(line, *text++);
}

static void put_number(struct line *line, u64 value, u32 base, int negative, int width, char padding)
{
    char digits[24];
    ulong at = sizeof(digits);
    do
        digits[--at] = "0123456789abcdef"[divide(&value, base)];
    while (value);
    if (negative)
        digits[--at] = '-';
    put_padded(line, digits + at, sizeof(digits) - at, width, padding);
}

typedef __builtin_va_list va_list;

static u64 next_number(va_list *arguments, int longs, int is_signed)
{
    if (longs >= 2)
        return __builtin_va_arg(*arguments, u64);
    if (longs == 1)
        return is_signed ? (u64)(s64)__builtin_va_arg(*arguments, long) : __builtin_va_arg(*arguments, ulong);
    return is_signed ? (u64)(s64)__builtin_va_arg(*arguments, int) : __builtin_va_arg(*arguments, u32);
}

static void put_directive(struct line *line, char kind, int longs, int width, char padding, va_list *arguments)
{
    const char *text;
    u64 value;
    switch (kind) {
    case 'c':
        put(line, (char)__builtin_va_arg(*arguments, int));
        break;
    case 's':
        text = __builtin_va_arg(*arguments, const char *);
        put_padded(line, text, strlen(text), width, ' ');
        break;
    case 'd':
        value = next_number(arguments, longs, 1);
        put_number(line, (s64)value < 0 ? -value : value, 10, (s64)value < 0, width, padding);
        break;
    case 'u':
        put_number(line, next_number(arguments, longs, 0), 10, 0, width, padding);
        break;
    case 'p':
        put_number(line, __builtin_va_arg(*arguments, ulong), 16, 0, width, padding);
        break;
    case 'x':
        put_number(line, next_number(arguments, longs, 0), 16, 0, width, padding);
        break;
    default:
        put(line, kind);
    }
}

int printf(const char *format, ...)
{
    struct line line = { .used = 0, .written = 0 };
    va_list arguments;
    __builtin_va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(&line, *format);
            continue;
        }
        char padding = format[1] == '0' ? '0' : ' ';
        int width = 0, longs = 0;
        for (format++; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + *format - '0';
        for (; *format == 'l'; format++)
            longs++;
        put_directive(&line, *format, longs, width, padding, &arguments);
    }
    __builtin_va_end(arguments);
    flush(&line);
    return line.written;
}
