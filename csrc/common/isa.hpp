// The instruction sets that this library was compiled for, and which of them the machine has.
#pragma once

#include <array>
#include <string_view>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace openk2 {

enum class Isa { portable, avx2, avx512, neon, neon_dotprod };

struct IsaInfo {
    Isa isa;
    std::string_view name;
    bool (*supported)();  // by this processor and its operating system
};

#if defined(OPENK2_HAS_avx2)
inline bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#if defined(OPENK2_HAS_avx512)
inline bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#if defined(OPENK2_HAS_neon_dotprod)
inline bool has_neon_dotprod() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
    return true;
#else
    return false;
#endif
}
#endif

// Slowest first: the last supported entry is the one to use.
inline constexpr std::array compiled_isas{
    IsaInfo{Isa::portable, "portable", [] { return true; }},
#if defined(OPENK2_HAS_avx2)
    IsaInfo{Isa::avx2, "avx2", has_avx2},
#endif
#if defined(OPENK2_HAS_avx512)
    IsaInfo{Isa::avx512, "avx512", has_avx512},
#endif
#if defined(OPENK2_HAS_neon)
    IsaInfo{Isa::neon, "neon", [] { return true; }},  // part of every 64-bit Arm processor
#endif
#if defined(OPENK2_HAS_neon_dotprod)
    IsaInfo{Isa::neon_dotprod, "neon_dotprod", has_neon_dotprod},
#endif
};

}  // namespace openk2

// Declares a kernel's versions, one per compiled instruction set, and `dispatch_NAME(isa, args)` over them.
#if defined(OPENK2_HAS_avx2)
#define OPENK2_IF_AVX2(code) code
#else
#define OPENK2_IF_AVX2(code)
#endif
#if defined(OPENK2_HAS_avx512)
#define OPENK2_IF_AVX512(code) code
#else
#define OPENK2_IF_AVX512(code)
#endif
#if defined(OPENK2_HAS_neon)
#define OPENK2_IF_NEON(code) code
#else
#define OPENK2_IF_NEON(code)
#endif
#if defined(OPENK2_HAS_neon_dotprod)
#define OPENK2_IF_NEON_DOTPROD(code) code
#else
#define OPENK2_IF_NEON_DOTPROD(code)
#endif

#define OPENK2_DECLARE_KERNEL(name, Args)                                       \
    namespace portable { void name(const Args&); }                              \
    OPENK2_IF_AVX2(namespace avx2 { void name(const Args&); })                  \
    OPENK2_IF_AVX512(namespace avx512 { void name(const Args&); })              \
    OPENK2_IF_NEON(namespace neon { void name(const Args&); })                  \
    OPENK2_IF_NEON_DOTPROD(namespace neon_dotprod { void name(const Args&); })  \
    inline void dispatch_##name(Isa isa, const Args& args) {                    \
        switch (isa) {                                                          \
            OPENK2_IF_AVX2(case Isa::avx2: return avx2::name(args);)            \
            OPENK2_IF_AVX512(case Isa::avx512: return avx512::name(args);)      \
            OPENK2_IF_NEON(case Isa::neon: return neon::name(args);)            \
            OPENK2_IF_NEON_DOTPROD(                                             \
                case Isa::neon_dotprod: return neon_dotprod::name(args);)       \
            default: return portable::name(args);                               \
        }                                                                       \
    }
