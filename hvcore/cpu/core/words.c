/* The lists of words as text, for the loader to compare with hvcore/cpu/words.py. */
#include "core.h"

#define HV_NAME(name) #name " "

HV_EXPORT const char hv_words[] = "engine: " HV_ENGINE_WORDS(HV_NAME) "vcpu: " HV_VCPU_WORDS(HV_NAME)
                                  "domain: " HV_DOMAIN_WORDS(HV_NAME);
HV_EXPORT const char hv_sources[] = HV_SOURCES; /* the digest of the files that this was compiled from */
