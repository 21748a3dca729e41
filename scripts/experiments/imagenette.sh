#!/usr/bin/env bash
# The experiments of model_cards/imagenette at one size of the images: explainers, tables, curves.
#
#     bash scripts/experiments/imagenette.sh CLASSIFIER TRAIN VAL OUTPUT STEPS [ARGUMENTS OF scripts/train.py...]
#
# CLASSIFIER is a classifier's folder, TRAIN and VAL have a folder of photographs per class, STEPS are of 64 photographs
# with 32 values of the classifier each. Every command goes on where it was stopped, so that a stopped script may be
# started again. SEEDS (default "0 1 2") are those of the explainers, PHOTOGRAPHS (default 200) are scored, PRECISION is
# bf16 or no, METHODS are scored beside Salvage and ViT-Shapley.
set -euo pipefail

classifier=$1 train=$2 val=$3 output=$4 steps=$5
shift 5
photographs=${PHOTOGRAPHS:-200}
read -ra seeds <<< "${SEEDS:-0 1 2}"
read -ra methods <<< "${METHODS:-last_attention attention_rollout attention_flow saliency smoothgrad integrated_gradients \
gradcam gradcam_plus_plus eigencam ablationcam vit_cx lrp conservative_lrp rise kernelshap svarm random}"
launch=(accelerate launch --mixed_precision "${PRECISION:-bf16}" --num_cpu_threads_per_process "$(nproc)")

# Salvage as published and with sharper guidance, Salvage without guidance, ViT-Shapley: equal steps and values.
"${launch[@]}" scripts/ablation.py --model_name_or_path "$classifier" --train_dir "$train" --validation_dir "$val" \
    --output_dir "$output/ablation" --seeds "${seeds[@]}" --exponents 4 --max_train_steps "$steps" \
    --per_device_train_batch_size 64 --new_subsets 32 --learning_rate 3e-5 --vit_shapley_learning_rate 3e-5 \
    --checkpointing_steps 100 --max_eval_samples 64 --max_scored_samples "$photographs" --budget 160 "$@"

first=${seeds[0]}
salvage=$output/ablation/salvage-guided-4-$first/last
vit_shapley=$output/ablation/vit_shapley-uniform-$first/last
"${launch[@]}" scripts/benchmark.py --model_name_or_path "$classifier" --validation_dir "$val" \
    --explainers "salvage=$salvage" "vit_shapley=$vit_shapley" --methods salvage salvage_refined vit_shapley "${methods[@]}" \
    --max_eval_samples "$photographs" --budget 160 --output_dir "$output/benchmark"

"${launch[@]}" scripts/budget_curve.py --model_name_or_path "$classifier" --validation_dir "$val" \
    --explainers "salvage=$salvage" --methods salvage salvage_refined rise kernelshap svarm \
    --max_eval_samples "$photographs" --budget 160 --output_dir "$output/budget_curve"

python scripts/report.py --benchmarks "ImageNette=$output/benchmark" --ablations "ImageNette=$output/ablation" \
    --output_dir "$output/report"
