// Only in builds with AddressSanitizer: the module's own memory comes from the sanitizer's heap.
//
// Envoy's malloc is in its executable and is found before the sanitizer's, so that what we allocate would be
// memory that the sanitizer knows nothing of: no use after free would be seen. The sanitizer's run-time comes
// with the module, and these operators ask it by name.
#include <cstddef>
#include <new>

extern "C" {
void* __interceptor_malloc(size_t size);                       // NOLINT: the sanitizer's names
void* __interceptor_aligned_alloc(size_t align, size_t size);  // NOLINT
void __interceptor_free(void* memory);                         // NOLINT
}

// The run-time is not the first library here, and it cannot see what Envoy's memory points at: leaks are
// looked for where the same hooks are driven without Envoy (tests/module).
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {  // NOLINT
  return "verify_asan_link_order=0:detect_leaks=0";
}

void* operator new(size_t size) {
  void* memory = __interceptor_malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
// What std::stable_sort borrows its room with.
void* operator new(size_t size, const std::nothrow_t&) noexcept { return __interceptor_malloc(size); }
void* operator new(size_t size, std::align_val_t align) {
  const auto alignment = static_cast<size_t>(align);
  void* memory = __interceptor_aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { __interceptor_free(memory); }
void operator delete(void* memory, size_t) noexcept { __interceptor_free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { __interceptor_free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { __interceptor_free(memory); }
