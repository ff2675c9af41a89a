/* Hides AVX-512, AMX and VNNI from a process: its libraries take their kernels for AVX2, as on an older CPU.

Loaded by LD_PRELOAD on Linux x86-64, where the CPU and the kernel let a process trap the CPUID instruction
(ARCH_SET_CPUID of arch_prctl(2)). Each CPUID faults then, and is answered here, without these features.
*/
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define SET_CPUID 0x1012
#define BIT(n) (1u << (n))

static struct sigaction others;

static long allow(int on) { return syscall(SYS_arch_prctl, SET_CPUID, on); }

static void answer(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *instruction = (const uint8_t *)registers[REG_RIP];
  (void)number;
  if (info->si_code != SI_KERNEL || instruction[0] != 0x0f || instruction[1] != 0xa2) {
    sigaction(SIGSEGV, &others, NULL); /* a real fault comes again, and goes where it would have gone */
    return;
  }
  uint32_t leaf = registers[REG_RAX], part = registers[REG_RCX];
  uint32_t a = leaf, b, c = part, d;
  allow(1);
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  allow(0);
  if (leaf == 7 && part == 0) { /* Intel's manual, volume 2A, CPUID */
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* avx512 f ... vl */
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14));                                  /* avx512 vbmi, vnni ... */
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));               /* avx512 fp16, amx */
  } else if (leaf == 7 && part == 1) {
    a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* avx-vnni, avx512 bf16, amx-fp16, avx-ifma */
    d &= ~(BIT(4) | BIT(5) | BIT(10) | BIT(19)); /* avx-vnni-int8, avx-ne-convert, avx-vnni-int16, avx10 */
  }
  registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
  struct sigaction own = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &own, &others);
  if (allow(0) != 0) {
    fputs("This CPU or kernel does not let a process hide instructions.\n", stderr);
    exit(3);
  }
}
