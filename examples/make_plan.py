"""Where should the experts live? Places them on 4 ranks, by what profile_model.py wrote."""

import c2r


def main() -> None:
    profile = c2r.CollaborationProfile.load("profile.safetensors")
    print("max load   copies per token   busiest rank")
    for max_load in (1.1, 1.3, None):
        plan = c2r.make_plan(
            profile, num_ranks=4, policy="priced", strength=0.05, max_load=max_load
        )
        traffic = c2r.predict_traffic(profile, plan).mean
        print(
            f"{max_load or 'any':>8}   {traffic.copies_placed:16.2f}   "
            f"{traffic.rank_load_max_over_mean:11.2f}x"
        )
    print(f"a row per expert: {traffic.copies_once_per_expert:.0f} copies")
    print(f"a row per rank, experts in order: {traffic.copies_in_order:.2f} copies")
    print("of layer 0, rank 0 holds experts", plan.layers[0].experts_of(0).tolist())
    plan.save("plan.safetensors")


if __name__ == "__main__":
    main()
