// The schemas of every op, and nothing else. NAME_kernel takes the arguments of NAME and says what
// would do its products. Each op's implementations stand at the bottom of the
// file that has its name. States are (values, psi, scale); see rapkernels/relevance.py.
#include "device.h"

RAPKERNELS_LIBRARY(RAPKERNELS_NAMESPACE, m) {
  m.def(
      "relprop_linear(Tensor x, Tensor weight, Tensor relevance, Tensor? psi, Tensor? scale, "
      "str rule, bool nonnegative=False, Tensor? bias=None, float[] parameters=[], "
      "Tensor? z=None, Tensor? positive=None, Tensor? negative=None) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("linear_split(Tensor x, Tensor weight, bool nonnegative=False) -> (Tensor, Tensor)");
  m.def(
      "relprop_conv(Tensor x, Tensor weight, Tensor? z, Tensor relevance, Tensor? psi, "
      "Tensor? scale, int[] stride, int[] padding, int[] dilation, int groups, str rule, "
      "bool nonnegative, Tensor? bias=None, float[] parameters=[], str precision='fp32') "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_linear_kernel(Tensor x, Tensor weight, Tensor relevance, Tensor? psi, "
      "Tensor? scale, str rule, bool nonnegative=False, Tensor? bias=None, float[] parameters=[], "
      "Tensor? z=None, Tensor? positive=None, Tensor? negative=None) -> str");
  m.def(
      "relprop_conv_kernel(Tensor x, Tensor weight, Tensor? z, Tensor relevance, Tensor? psi, "
      "Tensor? scale, int[] stride, int[] padding, int[] dilation, int groups, str rule, "
      "bool nonnegative, Tensor? bias=None, float[] parameters=[], str precision='fp32') "
      "-> str");
  m.def(
      "relprop_zbox_linear(Tensor x, Tensor weight, Tensor low, Tensor high, Tensor relevance, "
      "Tensor? psi, Tensor? scale, float stabilizer=0.0) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_zbox_conv(Tensor x, Tensor weight, Tensor low, Tensor high, Tensor relevance, "
      "Tensor? psi, Tensor? scale, int[] stride, int[] padding, int[] dilation, int groups, "
      "float stabilizer=0.0) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_equilibrium_linear(Tensor x, Tensor weight, Tensor relevance, Tensor? psi, "
      "Tensor? scale) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_equilibrium_conv(Tensor x, Tensor weight, Tensor relevance, Tensor? psi, "
      "Tensor? scale, int[] stride, int[] padding, int[] dilation, int groups, float ratio) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_first_linear(Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor score, "
      "str rule) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_max_pool(Tensor x, Tensor relevance, Tensor? psi, Tensor? scale, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode, "
      "bool absorb_zeros=True) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_avg_pool(Tensor x, Tensor relevance, Tensor? psi, Tensor? scale, "
      "int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, str rule, "
      "float stabilizer=0.0) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_adaptive_max_pool(Tensor x, Tensor relevance, Tensor? psi, Tensor? scale, "
      "bool absorb_zeros=True) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_adaptive_avg_pool(Tensor x, Tensor relevance, Tensor? psi, Tensor? scale, "
      "str rule, float stabilizer=0.0) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_add(Tensor a, Tensor b, Tensor relevance, Tensor? psi, Tensor? scale, str rule, "
      "float stabilizer=0.0) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "share_squares(Tensor v, Tensor relevance, Tensor? psi, Tensor? scale) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_sharing_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? z, Tensor relevance, "
      "Tensor? psi, Tensor? scale, int[] stride, int[] padding, int[] dilation, int groups) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "relprop_sharing_linear(Tensor x, Tensor weight, Tensor? bias, Tensor relevance, "
      "Tensor? psi, Tensor? scale) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "merge(Tensor values_a, Tensor? psi_a, Tensor? scale_a, Tensor values_b, Tensor? psi_b, "
      "Tensor? scale_b) -> (Tensor, Tensor)");
  m.def("apply_shift(Tensor values, Tensor? psi, Tensor? scale) -> Tensor");
  m.def(
      "split_quotient(Tensor z, Tensor a, Tensor relevance, Tensor? psi, str rule) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "gate(Tensor x, Tensor gradient, Tensor? total, Tensor? scale) -> (Tensor, Tensor, Tensor)");
}
