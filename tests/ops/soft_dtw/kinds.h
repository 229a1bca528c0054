// FASTSEQ_EXPORT(kind, number, suffix) of each kind of call and dtype, with the soft minimum that
// the compiler's option FASTSEQ_SOFTMIN names.
#ifndef FASTSEQ_SOFTMIN
#define FASTSEQ_SOFTMIN LogSumExp
#endif

using Embeddings32 = Embeddings<float, FASTSEQ_SOFTMIN>;
using Embeddings64 = Embeddings<double, FASTSEQ_SOFTMIN>;
using Costs32 = Costs<float, FASTSEQ_SOFTMIN>;
using Costs64 = Costs<double, FASTSEQ_SOFTMIN>;

FASTSEQ_EXPORT(Embeddings32, float, Embeddings_f32)
FASTSEQ_EXPORT(Embeddings64, double, Embeddings_f64)
FASTSEQ_EXPORT(Costs32, float, Costs_f32)
FASTSEQ_EXPORT(Costs64, double, Costs_f64)
