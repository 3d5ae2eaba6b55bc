# A guest that does nothing but dirty memory: one boot sector, no kernel.
#
# It enters 32-bit protected mode, sets the timer to 1000 Hz, and then writes
# four pages a tick for ever (16 MiB/s of touched pages, whatever the speed of
# the CPU), halting in between so that it leaves the host's CPU to others.
#
# Memory it writes, once in every pass:
#   1 MiB .. 1 MiB + 8 MiB           with 10 MiB or more of RAM
#   1 MiB .. end of RAM - 256 KiB    with less (firmware tables are at the end)
#   128 KiB .. 512 KiB               with less than 512 KiB above 1 MiB
#
# Page number i of pass p holds, by i mod 8:
#   0..3  (i + p) mod 4 = 0: one byte, 1: pseudo-random words, 2: zero,
#         3: counting words; so every such page turns from each kind to the next
#   4..7  counting words in pass 0; afterwards
#         4: one word changes, 5: two words change, 6: 16 words in a row change,
#         7: nothing changes, and nothing is written
#
# Fixed places:
#   0x7000  u32  passes completed
#   0x7004  u32  pages a pass
#   0x7008  u32  address of the first page
#   0x700c       "MIGW" as soon as the guest runs
# After each pass one letter (a..z, again and again) goes to port 0xe9 (debug
# console) and to port 0x3f8 (first serial line).

        .set    STATE, 0x7000
        .set    IDT, 0x6000
        .set    PAGES_MAX, 2048
        .set    PIT_DIVISOR, 1193               # 1193182 Hz / 1000 Hz

        .code16
        .globl  _start
_start:
        cli
        cld
        ljmp    $0, $real
real:
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp

        # KiB above 1 MiB, at most 63 MiB, which is all that matters here.
        movb    $0x88, %ah
        int     $0x15
        jnc     1f
        xorw    %ax, %ax
1:
        cli                                     # the BIOS may have set it
        movzwl  %ax, %eax
        movl    $0x100000, %edx
        cmpl    $512, %eax
        jae     2f
        movl    $96 * 4 + 256, %eax             # what the two lines below undo
        movl    $0x20000, %edx
2:      subl    $256, %eax
        shrl    $2, %eax                        # KiB to pages
        cmpl    $PAGES_MAX, %eax
        jbe     3f
        movl    $PAGES_MAX, %eax
3:      movl    %eax, STATE + 4
        movl    %edx, STATE + 8
        movl    $0x5747494d, STATE + 12
        movl    $0, STATE

        # The A20 gate, in case that the firmware left it closed.
        inb     $0x92, %al
        orb     $2, %al
        andb    $0xfe, %al
        outb    %al, $0x92

        # The timer: channel 0, rate generator.
        movb    $0x34, %al
        outb    %al, $0x43
        movb    $PIT_DIVISOR & 0xff, %al
        outb    %al, $0x40
        movb    $PIT_DIVISOR >> 8, %al
        outb    %al, $0x40
        # Only the timer may interrupt; the BIOS left it at vector 8.
        movb    $0xfe, %al
        outb    %al, $0x21
        movb    $0xff, %al
        outb    %al, $0xa1
        movl    $(0x00080000 + tick), IDT + 8 * 8
        movl    $0x00008e00, IDT + 8 * 8 + 4

        lgdtl   gdt_pointer
        lidtl   idt_pointer
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $8, $protected

        .code32
protected:
        movw    $16, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x7c00, %esp
        movl    $0x2545f491, %ebx               # state of the random words
        xorl    %ebp, %ebp                      # number of the pass
        sti

pass:
        xorl    %esi, %esi                      # number of the page
page:
        movl    %esi, %edi
        shll    $12, %edi
        addl    STATE + 8, %edi
        movl    $1024, %ecx
        testl   $4, %esi
        jnz     delta

        leal    (%esi, %ebp), %eax
        andl    $3, %eax
        jz      constant
        decl    %eax
        jz      random
        decl    %eax
        jz      fill                            # with eax = 0
count:
        movl    %esi, %eax
        shll    $16, %eax
        addl    %ebp, %eax
1:      stosl
        incl    %eax
        loop    1b
        jmp     next
constant:
        imull   $0x01010101, %ebp, %eax
        addl    $0x11111111, %eax
fill:
        rep stosl
        jmp     next
random:
        imull   $1664525, %ebx, %ebx
        addl    $1013904223, %ebx
        movl    %ebx, %eax
        stosl
        loop    random
        jmp     next

        # A few words of a page that the destination has already.
delta:
        testl   %ebp, %ebp
        jz      count
        movl    %esi, %eax
        andl    $3, %eax
        cmpb    $3, %al
        je      next
        imull   $68, %ebp, %edx
        andl    $0x7fc, %edx
        addl    %edx, %edi
        incl    (%edi)
        decl    %eax
        js      next
        jnz     1f
        xorl    %ebp, 0x7fc(%edi)
        jmp     next
1:      movl    %ebp, %eax
        movl    $16, %ecx
        rep stosl

next:
        incl    %esi
        testl   $3, %esi
        jnz     1f
        hlt
1:      cmpl    STATE + 4, %esi
        jb      page

        movl    %ebp, %eax
        xorl    %edx, %edx
        movl    $26, %ecx
        divl    %ecx
        leal    0x61(%edx), %eax
        outb    %al, $0xe9
        movw    $0x3f8, %dx
        outb    %al, %dx
        incl    %ebp
        movl    %ebp, STATE
        jmp     pass

tick:
        pushl   %eax
        movb    $0x20, %al
        outb    %al, $0x20
        popl    %eax
        iret

        .balign 4
gdt:
        .quad   0
        .quad   0x00cf9a000000ffff              # 8: code, 0 .. 4 GiB
        .quad   0x00cf92000000ffff              # 16: data, 0 .. 4 GiB
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
idt_pointer:
        .word   9 * 8 - 1
        .long   IDT

        .org    510
        .word   0xaa55
