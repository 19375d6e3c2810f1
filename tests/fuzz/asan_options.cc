// Millions of small inputs: a stack for each allocation and a quarantine of 256 MiB would take most
// of the time. Replay a finding with ASAN_OPTIONS=malloc_context_size=30 to see who allocated.
extern "C" const char* __asan_default_options() {
  return "malloc_context_size=0:max_malloc_fill_size=0:quarantine_size_mb=1:"
         "thread_local_quarantine_size_kb=64";
}
