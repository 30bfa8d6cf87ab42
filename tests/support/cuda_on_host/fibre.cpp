#include "support/cuda_on_host/fibre.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define RAPT_FIBRE_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RAPT_FIBRE_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define RAPT_FIBRE_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RAPT_FIBRE_TSAN 1
#endif
#endif
#if defined(RAPT_FIBRE_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(RAPT_FIBRE_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__)
// Saves what a callee must preserve, swaps stacks, restores.
asm(R"(
.text
.globl rapt_switch_stack
.type rapt_switch_stack, @function
rapt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rapt_switch_stack, .-rapt_switch_stack
)");
extern "C" void rapt_switch_stack(void** save, void* load);
#endif

namespace rapt::cuda_on_host {

Fibre::Fibre() {
#if defined(RAPT_FIBRE_ASAN)
  pthread_attr_t attributes;
  if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
    pthread_attr_getstack(&attributes, &stack_bottom_, &stack_bytes_);
    pthread_attr_destroy(&attributes);
  }
#endif
#if defined(RAPT_FIBRE_TSAN)
  tsan_ = __tsan_get_current_fiber();
#endif
}

Fibre::Fibre(std::size_t stack_bytes) : stack_bytes_(stack_bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  memory_bytes_ = stack_bytes + page;
  memory_ = mmap(nullptr, memory_bytes_, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory_, page, PROT_NONE);  // an overflow stops here
  stack_bottom_ = static_cast<char*>(memory_) + page;
#if defined(RAPT_FIBRE_TSAN)
  tsan_ = __tsan_create_fiber(0);
#endif
}

Fibre::~Fibre() {
  if (memory_ == nullptr) return;
#if defined(RAPT_FIBRE_TSAN)
  __tsan_destroy_fiber(tsan_);
#endif
  munmap(memory_, memory_bytes_);
}

void Fibre::restart(void (*entry)()) {
#if defined(RAPT_FIBRE_ASAN)
  __asan_unpoison_memory_region(stack_bottom_, stack_bytes_);
#endif
#if defined(RAPT_FIBRE_TSAN)
  if (++restarts_ % 256 == 0) {  // forget the calls that were never returned from; this is slow
    __tsan_destroy_fiber(tsan_);
    tsan_ = __tsan_create_fiber(0);
  }
#endif
#if defined(__x86_64__)
  // As if rapt_switch_stack had been called by nobody: six registers, then where to return to. At
  // the first instruction of a function the stack pointer is 8 below a multiple of 16.
  auto* top = reinterpret_cast<std::uintptr_t*>(static_cast<char*>(stack_bottom_) + stack_bytes_);
  *--top = 0;  // a caller's return address: none
  *--top = reinterpret_cast<std::uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_bottom_;
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Fibre::arrived() {
#if defined(RAPT_FIBRE_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void Fibre::switch_to(Fibre& from, Fibre& to, [[maybe_unused]] bool last) {
#if defined(RAPT_FIBRE_ASAN)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack, to.stack_bottom_, to.stack_bytes_);
#endif
#if defined(RAPT_FIBRE_TSAN)
  __tsan_switch_to_fiber(to.tsan_, 0);
#endif
#if defined(__x86_64__)
  rapt_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
#if defined(RAPT_FIBRE_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

}  // namespace rapt::cuda_on_host
