// A stack and a way to leave it and come back. On x86-64 a switch is a dozen instructions;
// elsewhere ucontext does it, with a system call. The sanitizers are told of every switch.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace rapt::cuda_on_host {

class Fibre {
 public:
  /// The stack that this thread already runs on.
  Fibre();
  /// A stack of its own, on which `entry` will run; it must never return.
  explicit Fibre(std::size_t stack_bytes);
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;
  ~Fibre();

  /// Makes the next switch to this fibre start `entry` on an empty stack, whatever it was doing.
  void restart(void (*entry)());
  /// Leaves the running fibre `from`, which is this thread's current one, for `to`. `last`: it is
  /// not resumed, only restarted, and the sanitizer may forget what it keeps of its frames.
  static void switch_to(Fibre& from, Fibre& to, bool last = false);
  /// To be called first by an entry function.
  static void arrived();

 private:
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_{};
#endif
  void* memory_ = nullptr;  // guard page, then the stack
  std::size_t memory_bytes_ = 0, stack_bytes_ = 0;
  void* stack_bottom_ = nullptr;
  [[maybe_unused]] void* tsan_ = nullptr;
  [[maybe_unused]] unsigned restarts_ = 0;
};

}  // namespace rapt::cuda_on_host
